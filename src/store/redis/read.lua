#!lua flags=no-writes
-- Reads several keys in one command.
-- KEYS: the keys.  ARGV: the longest value that is wanted.
-- Returns for each key what it holds, empty where that is nothing; 1 where it is longer, or no string: to be asked for alone.
-- Of what is longer no more is read, for Redis does nothing else meanwhile: 32 values of 1 MiB took 119 ms, now 2.
local values, longest = {}, tonumber(ARGV[1])
for at = 1, #KEYS do
  local value = redis.pcall('GETRANGE', KEYS[at], 0, longest)
  values[at] = type(value) == 'string' and #value <= longest and value or 1
end
return values
