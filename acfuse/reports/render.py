"""From a conversion or a manifest to the files of its reports."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from acfuse.pipeline.job import Conversion
from acfuse.pipeline.manifest import Manifest, conversion_json
from acfuse.reports.html import as_html
from acfuse.reports.junit import as_junit
from acfuse.reports.markdown import as_markdown
from acfuse.reports.measure import pictures_of
from acfuse.reports.record import Report, report_of
from acfuse.system.atomic_write import write_all
from acfuse.system.escape import as_json

WRITERS: Mapping[str, Callable[[Report], str]] = {
    ".html": as_html,
    ".md": as_markdown,
    ".json": lambda report: f"{as_json(report.data)}\n",
    ".xml": as_junit,
}


def report_of_run(conversion: Conversion) -> Report:
    """What a conversion has to say, with pictures of its kernels."""
    fused, files = conversion.fused, conversion.files
    read = sum(state.size for state in files.values())
    return report_of(
        conversion_json(conversion), None if fused is None else pictures_of(fused, read)
    )


def report_of_manifest(manifest: Manifest) -> Report:
    """What a manifest has to say."""
    folder, outputs = manifest.path.parent, manifest.data["outputs"]
    written = [*(folder / output["file"] for output in outputs), manifest.path]
    return report_of({**manifest.data, "written": [str(path) for path in written]})


def write_reports(report: Report, paths: Sequence[Path]) -> None:
    """Writes every file, or none. Raises OutputError."""
    write_all({path: WRITERS[path.suffix](report).encode() for path in paths})
