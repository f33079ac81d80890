/* ---------- state machine: which changes of status are allowed ---------- */

CREATE FUNCTION cusown_ops.shipped_transitions(
  OUT machine text,
  OUT from_status text,
  OUT event text,
  OUT to_status text)
RETURNS SETOF record
LANGUAGE c IMMUTABLE PARALLEL SAFE ROWS 35
AS 'MODULE_PATHNAME', 'cusown_shipped_transitions';

COMMENT ON FUNCTION cusown_ops.shipped_transitions() IS
'Transitions that the extension ships; see the view cusown_ops.state_machine';

CREATE TABLE cusown_ops.state_transition (
  app_schema name NOT NULL,
  machine text NOT NULL,
  from_status text NOT NULL,
  event text NOT NULL,
  to_status text NOT NULL,
  CONSTRAINT state_transition_pkey
    PRIMARY KEY (app_schema, machine, from_status, event, to_status),
  CONSTRAINT state_transition_machine
    CHECK (machine OPERATOR(pg_catalog.=) ANY ('{booking,slot,payment}'))
);

COMMENT ON TABLE cusown_ops.state_transition IS
'Transitions that an owner allows for one application, beside those that the extension ships';
COMMENT ON COLUMN cusown_ops.state_transition.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.state_transition.machine IS
'booking, slot or payment';
COMMENT ON COLUMN cusown_ops.state_transition.from_status IS
'status before';
COMMENT ON COLUMN cusown_ops.state_transition.event IS
'what happens, for instance cancel';
COMMENT ON COLUMN cusown_ops.state_transition.to_status IS
'status after';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.state_transition', '');

CREATE VIEW cusown_ops.state_machine AS
SELECT NULL::name AS app_schema, s.machine, s.from_status, s.event, s.to_status
FROM cusown_ops.shipped_transitions() AS s
UNION ALL
SELECT t.app_schema, t.machine, t.from_status, t.event, t.to_status
FROM cusown_ops.state_transition AS t;

COMMENT ON VIEW cusown_ops.state_machine IS
'Every allowed change of status; app_schema is null where it holds for all applications';

