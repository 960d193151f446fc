"""What differs in a sandbox from the commit that was copied in, and how it becomes a commit of the merge request.

Whatever the guest, the archive or a pattern says is untrusted: it is looked at in a process with limits (`worker`).
"""
