"""`python -m launch.cancel` in a checkout: the same as `qllm-exp cancel`."""

import sys

from qllm_exp.cluster.cancel import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
