"""For the processes that a page of the documentation starts: the default port of both commands is a free one."""

import importlib.util
import os
import sys


class _Finder:
    def find_spec(self, name, path, target=None):
        if name != "echo.protocol":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.DEFAULT_PORT = int(os.environ["ECHO_DEFAULT_PORT"])

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
