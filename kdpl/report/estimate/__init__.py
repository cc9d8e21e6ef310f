"""What a run will be worth, estimated from frozen features before anything is trained."""
