"""Say what is in a data set and what is wrong with it, before anything is trained on it.

  multitask audit --spec=wikiart --data_dir=DIR --out=audit

Prints a summary and writes to --out: audit.html, one page that needs nothing else, with plots and
the near-duplicates side by side; audit.json, all lists whole. What the pictures look like is kept
in --records_dir, so that the next audit decodes only what is new.

Exit status, so that it can guard a data set in CI: 0 nothing found, 3 findings, 2 wrong input.
Findings: a missing or unreadable file; a row with an unsafe path or an unknown label; a picture
with contradictory labels, or listed repeatedly by one task; a picture that is train for one task
and val for another; a val picture with a near-duplicate in train; a class without a training or
an exam label. The last line counts them. Information only: label coverage, imbalance, classes
with few labels, mojibake in a path, a path that is spelt otherwise than its file (which is read),
a task without a test set, near-duplicates within train or within val, images in the folder that no
CSV names."""

from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.commands.spec_flags import (
    check_needed,
    define_records_dir,
    define_spec_flags,
    folder_or_none,
    resolve_spec,
)
from multitask.files import check_writable, replacing, write_json

FOUND = 3


def define_flags(values: flags.FlagValues) -> None:
    define_spec_flags(values, ())
    define_records_dir(values)
    flags.DEFINE_string("out", None, "folder for audit.html and audit.json", flag_values=values)


def main(values: flags.FlagValues, left: list[str]) -> None:
    check_needed(values, left, "audit", ("spec", "data_dir", "out"))
    spec = resolve_spec(values)
    out, records_dir = Path(values.out), folder_or_none(values.records_dir)
    check_writable(out, flag="--out")
    if records_dir:
        check_writable(records_dir, flag="--records_dir")

    import_tensorflow()
    from multitask.data.audit import audit_data_set, name_findings, summary
    from multitask.data.audit_page import write_page

    audit = audit_data_set(spec, Path(values.data_dir), records_dir=records_dir)
    print("\n".join(summary(audit)), flush=True)
    write_json(out / "audit.json", audit.to_json())
    with replacing(out / "audit.html") as temporary:
        write_page(audit, temporary)
    print(f"\nWritten: {out / 'audit.html'}, {out / 'audit.json'}")
    found = name_findings(audit.findings)
    if found:
        print(f"Findings: {found}", flush=True)
        raise SystemExit(FOUND)
    print("No findings.")
