DROP TABLE answer;

DROP TABLE reply_part;

DROP TABLE reply;

DROP FUNCTION reply_words(bigint, text, text);
