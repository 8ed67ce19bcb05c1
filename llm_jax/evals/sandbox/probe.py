from . import bwrap
Finding=check_sandbox=None
def trusted_host(): return bwrap.find_host()
