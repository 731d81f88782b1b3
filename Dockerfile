# The base image is that of metadata.yaml; another may be given where it can't be pulled.
ARG BASE_IMAGE=docker.io/airbyte/python-connector-base:4.1.0@sha256:1d1aa21d34e851df4e8a87b391c27724c06e2597608e7161f4d167be853bd7b6
FROM ${BASE_IMAGE}

WORKDIR /airbyte/integration_code
COPY pyproject.toml poetry.lock README.md ./
COPY scripts/locked.py ./scripts/
COPY source_amplitude ./source_amplitude
# The versions of poetry.lock, isal included, whatever has been released since.
RUN python scripts/locked.py main > locked.txt \
    && pip install --no-cache-dir --no-deps --require-hashes --requirement locked.txt \
    && pip install --no-cache-dir --no-deps . \
    && rm locked.txt

USER airbyte
ENV AIRBYTE_ENTRYPOINT="source-amplitude"
ENTRYPOINT ["source-amplitude"]
LABEL io.airbyte.name=airbyte/source-amplitude
LABEL io.airbyte.version=0.12.0
