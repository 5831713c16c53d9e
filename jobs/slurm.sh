#!/bin/bash
# The driver as a small Slurm job; it submits the workers as jobs of their own, and cancels them at its end.
#   sbatch jobs/slurm.sh configs/mnist.yaml [KEY=VALUE]...
#   sbatch --time=7-00:00:00 jobs/slurm.sh mine.yaml --cluster my-slurm.yaml
# Needs pip install 'kmeans-dask[hpc]'.
#SBATCH --job-name=kmeans-dask
#SBATCH --ntasks=1 --mem=4G --time=1-00:00:00

exec kmeans-dask run --cluster configs/cluster-slurm.yaml "$@"
