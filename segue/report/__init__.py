"""Reports: from run folders to one self-contained page, PNG figures and a table of the final scores.

It reads run folders and nothing else; JAX is never imported, so a report can be written on any machine.
"""

from segue.report.write import write_report

__all__ = ["write_report"]
