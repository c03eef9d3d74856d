"""Programs of a real Calico (`build.sh` makes them), which ours are held against."""
