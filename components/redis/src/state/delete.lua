-- KEYS: the key. ARGV: expected version or ''.
-- Gives 1 when it is gone and 0 on a conflict.
if ARGV[1] ~= '' then
  local version = redis.pcall('HGET', KEYS[1], 'version')
  if type(version) == 'string' and version ~= '' and version ~= ARGV[1] then return 0 end
end
redis.call('DEL', KEYS[1])
return 1
