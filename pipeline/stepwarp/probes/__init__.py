"""What a registrar of several steps does on its way: probes of any step, each with a control and a null.

They know nothing of files and of what is in the images: batches in 2D and in 3D alike. What they return are arrays with
one value for every pair (the last axis), which `statistics.described` turns into means with confidence intervals and
`statistics.jsonable` into plain lists."""
