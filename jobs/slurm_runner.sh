#!/bin/bash
# Everything in one Slurm job: the scheduler, the driver, and one worker per remaining task. Resubmit it to resume.
#   sbatch jobs/slurm_runner.sh configs/mnist.yaml [KEY=VALUE]...
#   sbatch --ntasks=66 --time=12:00:00 jobs/slurm_runner.sh mine.yaml --cluster my-slurm-runner.yaml
# Needs pip install 'kmeans-dask[hpc]'.
#SBATCH --job-name=kmeans-dask
#SBATCH --ntasks=34 --mem-per-cpu=4G --time=02:00:00

srun --kill-on-bad-exit=1 kmeans-dask run --cluster configs/cluster-slurm-runner.yaml "$@"
