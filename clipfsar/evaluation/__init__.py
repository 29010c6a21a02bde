"""Few-shot evaluation: encodes every video once, then runs episodes on the features."""
