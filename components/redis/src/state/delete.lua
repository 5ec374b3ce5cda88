-- KEYS: the key. ARGV: expected version or ''.
-- Gives 1 when it is gone and 0 on a conflict.
if ARGV[1] ~= '' then
  local version = redis.pcall('HGET', KEYS[1], 'version')
  -- A document of the JSON module has a version, too.
  if type(version) == 'table' then version = redis.pcall('JSON.GET', KEYS[1], '.version') end
  if type(version) == 'string' and version ~= '' and version ~= ARGV[1] then return 0 end
end
redis.call('DEL', KEYS[1])
return 1
