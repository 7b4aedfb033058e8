"""What a run is asked for: options with their meaning and limits, presets, TOML. Pure pydantic."""
