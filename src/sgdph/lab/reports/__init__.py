"""Shared tables, pages and pictures of all studies, and the report on finished runs.

``table``, ``page``, ``figure`` and ``numbers`` are shared: ``cost``, ``inspect`` and ``tune`` pass
their rows to them. The other modules make the report on finished runs. ``layout`` and ``grid``
arrange runs in rows and columns. ``measures`` and ``statistics`` compute values from them.
``tables``, ``words``, ``pictures`` and ``report`` show these values.
"""
