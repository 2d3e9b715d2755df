"""The laboratory: commands that train, compare and draw (installed by the extra ``lab``).

The data flows one way, ``config -> training -> runs -> report``: a configuration goes in at one
end, a directory of facts lies in the middle, and tables and pictures are made of directories alone.
"""
