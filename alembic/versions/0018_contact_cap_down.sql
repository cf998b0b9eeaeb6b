DROP FUNCTION record_contacts(bigint[], bigint[], boolean[], integer, interval);

DROP TABLE client_contact;
