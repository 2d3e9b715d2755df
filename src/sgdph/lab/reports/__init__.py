"""The only place that presents: tables, pages and pictures of every study.

``table``, ``page``, ``figure`` and ``numbers`` serve all of them: ``cost``, ``inspect`` and
``tune`` hand their rows to these. The others make the report of finished runs: ``layout`` and
``grid`` put runs into rows and columns, ``measures`` and ``statistics`` make figures of them,
``tables``, ``words``, ``pictures`` and ``report`` show them.
"""
