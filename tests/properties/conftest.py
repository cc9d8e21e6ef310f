from hypothesis import settings

# the same examples every time, and no clock: the machine may be busy
settings.register_profile("kdpl", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("kdpl")
