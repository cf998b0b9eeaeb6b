DROP TRIGGER add_event_of_finished_mailing ON mailing;

DROP TRIGGER add_event_of_started_mailing ON mailing;

DROP TRIGGER add_events_of_updated_messages ON message;

DROP TRIGGER add_events_of_inserted_messages ON message;

DROP TRIGGER add_event_of_reply ON reply;

DROP TRIGGER add_event_of_opt_out ON client;

DROP FUNCTION add_event_of_reply;

DROP FUNCTION add_event_of_opt_out;

DROP FUNCTION add_event_of_mailing;

DROP FUNCTION add_events_of_updated_messages;

DROP FUNCTION add_events_of_inserted_messages;

DROP FUNCTION is_final;

DROP FUNCTION add_webhook_event;

DROP TABLE mailing_hold;

DROP TABLE gateway_outage;

DROP TABLE webhook_delivery;

DROP TABLE webhook_event;

DROP TABLE webhook;
