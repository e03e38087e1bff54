# A CPU image, with the index that pytorch.org shows for the CPU build:
#   docker build --build-arg TORCH_INDEX=... -t acfuse .
#   docker run --rm -v "$PWD:/work" acfuse convert model.pth
FROM python:3.12-slim
ARG TORCH_INDEX
COPY . /src
RUN python -m pip install --no-cache-dir --index-url "${TORCH_INDEX:?as pytorch.org shows it}" torch \
    && python -m pip install --no-cache-dir /src \
    && rm -rf /src \
    && useradd --create-home acfuse
USER acfuse
WORKDIR /work
ENTRYPOINT ["acfuse"]
CMD ["--help"]
