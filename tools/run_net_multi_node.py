"""Run tools/run_net.py under the name that scripts of the UniFormerV2 repository call."""

import runpy
import sys

if __name__ == "__main__":
    runpy.run_path(f"{sys.path[0]}/run_net.py", run_name="__main__")
