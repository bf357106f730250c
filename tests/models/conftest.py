from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a first call pays for torch's start
settings.load_profile("patient")
