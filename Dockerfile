# Image of a Ray cluster's nodes, and of anything else that runs lada_ray:
#
#   docker build --tag lada-ray .
#   docker run --rm --shm-size 2g --volume "$PWD/runs:/home/ray/runs" lada-ray \
#       python -m lada_ray.jobs.run_stream --config demo --storage runs
#   docker run --network host --shm-size 2g lada-ray ray start --block --head
#
# Every node of a cluster has to run the same image: Ray insists on one Python and one Ray version.
FROM python:3.11-slim

# wget and procps are what KubeRay's probes and Ray's own commands call.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

# The dependencies first: they change seldom, and 5 GB need not be sent again for a line of code.
WORKDIR /opt/lada_ray
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md ./
COPY lada_ray/version.py lada_ray/version.py
RUN mkdir -p jobs configs tune_spaces \
    && touch lada_ray/__init__.py \
    && pip install --no-cache-dir --constraint constraints.txt . \
    && pip uninstall --yes lada_ray

COPY lada_ray lada_ray
COPY jobs jobs
COPY configs configs
COPY tune_spaces tune_spaces
RUN pip install --no-cache-dir --no-deps . && rm -rf /opt/lada_ray

USER ray
WORKDIR /home/ray
CMD ["python", "-m", "lada_ray.jobs.run_stream", "--help"]
