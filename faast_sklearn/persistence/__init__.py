"""Estimators in files without pickle, see docs/saving.md.

From the outside in: :mod:`saving` (paths, versions), :mod:`estimators` (classes, pipelines), :mod:`records` and
:mod:`parameters` (what each one holds), :mod:`fields` (kinds of values), :mod:`archive` (bytes).
"""
