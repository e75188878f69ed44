import sys
from pathlib import Path

from savevm_fuzz import profiles

HERE = Path(__file__).parent
# The machines of the reference's own tests are those that are saved here.
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "reference" / "tests")]

profiles.load()
