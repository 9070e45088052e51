"""Search the settings of the heads on cached features."""
