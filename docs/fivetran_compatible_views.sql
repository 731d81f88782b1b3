-- The columns that Fivetran's dbt package `amplitude` reads, selected from this connector's tables.
-- Renames alone: no value is computed, so a model built on the package runs on these views.
--
-- Columns are named as PyAirbyte's DuckDB tables name them. Destinations that keep the dollar sign
-- have "$insert_id" and "$schema" where _insert_id and _schema stand below. Adjust the schema of
-- `events` and `events_list`, and point the package's variables `event` and `event_type` here.
--
-- Amplitude numbers event types only in the list of visible ones, and an event carries the name
-- alone. The name is therefore the key between the two views. The package fills _fivetran_deleted,
-- which Amplitude's API does not give, with nulls. project_name is the connection's Project Name.

CREATE SCHEMA IF NOT EXISTS amplitude;

CREATE OR REPLACE VIEW amplitude.event AS
SELECT
    _airbyte_extracted_at AS _fivetran_synced,
    _insert_id,
    _schema AS schema,
    adid AS ad_id,
    amplitude_event_type,
    amplitude_id,
    app,
    city,
    client_event_time,
    client_upload_time,
    country,
    data,
    device_brand,
    device_carrier,
    device_family,
    device_id,
    device_manufacturer,
    device_model,
    device_type,
    dma,
    event_id AS id,
    event_properties,
    event_time,
    event_type,
    event_type AS event_type_id,
    group_properties,
    groups,
    idfa,
    ip_address,
    is_attribution_event,
    language,
    library,
    location_lat,
    location_lng,
    os_name,
    os_version,
    paying,
    plan,
    platform,
    processed_time,
    project_name,
    region,
    server_received_time,
    server_upload_time,
    session_id,
    start_version,
    user_creation_time,
    user_id,
    user_properties,
    uuid,
    version_name
FROM events;

CREATE OR REPLACE VIEW amplitude.event_type AS
SELECT
    _airbyte_extracted_at AS _fivetran_synced,
    value AS id,
    name,
    name AS event_type_name,
    value,
    display,
    totals,
    totals_delta,
    autohidden,
    clusters_hidden,
    deleted,
    flow_hidden,
    hidden,
    in_waitroom,
    non_active,
    project_name,
    timeline_hidden
FROM events_list;
