"""
The commands of ``benchmark.py``, one a file: ``add_arguments`` and ``run``.

Packages are imported where they are used: ``train --against COMMIT`` runs these files with the package of another commit,
which may lack what other benchmarks need; and some benchmarks need what others do without (MuJoCo 4, matplotlib).
"""
