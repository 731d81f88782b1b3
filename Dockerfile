# The base image is that of metadata.yaml; another may be given where it can't be pulled.
ARG BASE_IMAGE=docker.io/airbyte/python-connector-base:4.1.0@sha256:1d1aa21d34e851df4e8a87b391c27724c06e2597608e7161f4d167be853bd7b6
FROM ${BASE_IMAGE}

WORKDIR /airbyte/integration_code
COPY pyproject.toml README.md ./
COPY source_amplitude ./source_amplitude
RUN pip install --no-cache-dir '.[fast]'

USER airbyte
ENV AIRBYTE_ENTRYPOINT="source-amplitude"
ENTRYPOINT ["source-amplitude"]
LABEL io.airbyte.name=airbyte/source-amplitude
LABEL io.airbyte.version=0.11.0
