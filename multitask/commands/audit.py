"""Check a data set before training: count its images and labels, and list its faults.

  multitask audit --spec=wikiart --data_dir=DIR --out=audit

Prints a summary and writes to --out: audit.html, a self-contained page with plots and the
near-duplicates side by side; audit.json, with the complete lists. The hashes of the images are kept
in --records_dir, so that the next audit decodes only new images.

Exit status, for use in CI: 0 no findings, 3 findings, 2 wrong input.
Findings: a missing or unreadable file; a row with an unsafe path or an unknown label; an image
with contradictory labels, or listed repeatedly by one task; an image that is train for one task
and test for another; a test image with a near-duplicate in train; a class without a training or
a test label. The last line counts them. Information only: sets of labels, imbalance, classes
with few labels, mojibake in a path, a path that is spelled differently from its file (which is
read), a task without a test set, near-duplicates within train or within test, images in the folder
that no CSV names.
"""

from pathlib import Path

from absl import flags

from multitask.commands.spec_flags import (
    define_records_dir,
    define_spec_flags,
    path_or_none,
    resolve_data,
)
from multitask.files import check_writable
from multitask.startup import import_tensorflow

HAS_FINDINGS = 3  # exit status


def define_flags(values: flags.FlagValues) -> None:
    define_spec_flags(values, ())
    define_records_dir(values)
    flags.DEFINE_string("out", None, "folder for audit.html and audit.json", flag_values=values)


def main(values: flags.FlagValues, left: list[str]) -> None:
    spec, data_dir = resolve_data(values, left, "audit", ("out",))
    out, records_dir = Path(values.out), path_or_none(values.records_dir)
    check_writable(out, field="out")
    if records_dir:
        check_writable(records_dir, field="records_dir")

    import_tensorflow()
    from multitask.annexes.audit import audit_data_set, name_findings
    from multitask.annexes.audit_text import summary

    audit = audit_data_set(spec, data_dir, records_dir=records_dir)
    print("\n".join(summary(audit)), flush=True)
    page, lists = audit.write(out)
    print(f"\nWritten: {page}, {lists}")
    findings = name_findings(audit.findings)
    if findings:
        print(f"Findings: {findings}", flush=True)
        raise SystemExit(HAS_FINDINGS)
    print("No findings.")
