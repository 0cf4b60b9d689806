"""What if: any clipping policy, run over the norms of a run that is over."""
