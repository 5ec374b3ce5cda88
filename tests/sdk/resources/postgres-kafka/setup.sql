-- The table and the trigger that configuration.postgresql needs.
CREATE TABLE configuration (key varchar PRIMARY KEY, value varchar NOT NULL, version varchar NOT NULL, metadata json);
CREATE FUNCTION announce() RETURNS trigger AS $$
DECLARE data json;
BEGIN
  IF TG_OP = 'DELETE' THEN data = row_to_json(OLD); ELSE data = row_to_json(NEW); END IF;
  PERFORM pg_notify('configuration', json_build_object('table', TG_TABLE_NAME, 'action', TG_OP, 'data', data)::text);
  RETURN NULL;
END; $$ LANGUAGE plpgsql;
CREATE TRIGGER changes AFTER INSERT OR UPDATE OR DELETE ON configuration FOR EACH ROW EXECUTE PROCEDURE announce();
