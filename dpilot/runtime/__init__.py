"""The glue to Dask: the scheduler plugin, what runs on workers, and a process's session with a scheduler.

Only :mod:`~dpilot.runtime.adapter` touches what distributed does not document.
"""
