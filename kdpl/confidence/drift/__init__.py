"""New images compared with the pool that a classifier was distilled on."""
