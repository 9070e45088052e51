"""Hostile surroundings: kills, full disks, odd files and closed pipes end in one clear line."""

# === Stopped at any moment ===

# === No room on the disk ===

# === Files that are not regular ===

# === Closed pipes and skipped files ===

# === Specs and lists ===

# === Names that meet ours ===

# === Answers that few examples cannot give ===

# === Exports ===
