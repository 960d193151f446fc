"""What the people who run ravebot need: health, cleaning up, the audit, housekeeping, the doctor.

Put together from all other parts, so it may import any of them. `reports` and `hostlock` import next to nothing, and
may be imported by the doors.
"""
