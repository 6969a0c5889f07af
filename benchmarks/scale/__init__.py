"""Ten thousand calls on one core: the gateway's own code, synthetic engines, virtual time.

Reading order: `clock` (time that jumps) → `store` (a real Redis, its operations and bytes counted)
→ `engines` (replicas and the ingress before them) → `fleet` (gateways and zones) → `callers` →
`scenarios` → `__main__`.
"""
