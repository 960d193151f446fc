"""Operating ravebot: health, cleanup, the audit, housekeeping, the doctor.

These modules combine all other parts, so they may import any of them. `reports` and `hostlock` import almost nothing,
so that the doors may import them.
"""
