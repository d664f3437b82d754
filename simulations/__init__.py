"""The engines that carry messages: `inline`, in this process, and `ray`, over a cluster of workers."""
