DROP TRIGGER add_ended_mailing_of_notices ON mailing;

DROP FUNCTION add_ended_mailing_of_notices;

DROP TABLE notice_trouble;

DROP TABLE notice_ended_mailing;

DROP TABLE notice;

DROP TABLE notice_recipient;
