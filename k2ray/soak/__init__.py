"""Whether a system that ran for long ran well: samples, evidence by ids, a verdict, and its report.

`samples` is what a running system writes down every minute, `growth` projects memory, `evidence` asks the tables,
`verdict` judges, `report` and `plots` show it. `k2ray soak` and `k2ray validate` are the shells.
"""
