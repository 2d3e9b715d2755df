"""Tables, pages and pictures of all studies, and the report on finished runs.

``table``, ``page``, ``folder``, ``figure``, ``styles``, ``numbers``, ``statistics`` and
``sensitivity*`` also serve ``cost``, ``inspect`` and ``tune``. The other modules make the report on
finished runs. ``layout`` and ``grid`` arrange runs in rows and columns. ``measures`` computes
values from them. ``tables``, ``words``, ``pictures`` and ``report`` show these values.
"""
