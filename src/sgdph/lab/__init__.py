"""The laboratory: commands that train, compare and draw (installed by the extra ``lab``).

The data flows one way, ``config -> run -> reports``. Training turns a configuration into a run
directory. Tables and pictures are made from run directories only.
"""
