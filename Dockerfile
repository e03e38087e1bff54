# A CPU image: docker build -t acfuse . && docker run --rm -v "$PWD:/work" acfuse convert model.pth
FROM python:3.12-slim
COPY . /src
RUN python -m pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && python -m pip install --no-cache-dir /src \
    && rm -rf /src \
    && useradd --create-home acfuse
USER acfuse
WORKDIR /work
ENTRYPOINT ["acfuse"]
CMD ["--help"]
