"""The catalog: what a user wrote about stacks and engines, checked and resolved.

Pure: nothing here touches a disk, a network or a clock. `resolve.resolve` is the way in.
"""
