"""Fuzzing that is guided by coverage: ``python -m savevm_fuzz.coverage``, over atheris."""
