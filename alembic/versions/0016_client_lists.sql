CREATE TABLE client_list (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name character varying NOT NULL,
    name_key character varying UNIQUE,
    clients_count bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone,
    CONSTRAINT client_list_name_check CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT client_list_clients_count_check CHECK (clients_count >= 0),
    CONSTRAINT client_list_deleted_check CHECK ((name_key IS NULL) = (deleted_at IS NOT NULL))
);

CREATE INDEX client_list_deleted_idx ON client_list (id) WHERE deleted_at IS NOT NULL;

-- Without foreign keys: they would check each of a million members of an import. The statements that
-- write members lock the list and its clients instead; rows of clients are never deleted.

CREATE TABLE client_list_member (
    list_id bigint NOT NULL,
    client_id bigint NOT NULL,
    PRIMARY KEY (list_id, client_id)
);

CREATE INDEX client_list_member_client_id_idx ON client_list_member (client_id);
